"""Makes a latent store of a collection of pictures, and goes on where a killed run stopped."""
