"""One request in, parallel parts out, one reply back; the wire formats of the clients."""
