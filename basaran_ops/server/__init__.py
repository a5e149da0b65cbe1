"""The HTTP side: Flask views, the gunicorn worker, and nothing that touches a tensor."""
