"""Making the demo model from nothing: render, train VAE, judge, CLIP and UNet, export."""
