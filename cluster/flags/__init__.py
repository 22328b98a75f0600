"""The flags of the command line, by concern, and what each part of the server makes of them."""
