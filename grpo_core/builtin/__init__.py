"""The core's own components, registered through the same door as everybody else's."""
