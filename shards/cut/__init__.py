"""The cut: from a SavedModel to lookups on tables and the TensorFlow stages between them.

`lookups` and `program` are plain data, without TensorFlow; the router executes them. The rest reads
`saved_model.pb` with TensorFlow's own Grappler and protos, and never a variable's value.
"""
