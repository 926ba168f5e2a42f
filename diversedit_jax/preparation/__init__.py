"""Makes a store from a collection of pictures, and goes on where a killed run stopped."""
