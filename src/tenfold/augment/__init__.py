"""Views of images: their definitions, and two backends that compute them."""
