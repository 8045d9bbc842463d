"""WebSockets for browsers: each is one Stream call of a client on the server's own port."""
