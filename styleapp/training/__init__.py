"""Training of decoders. Needs torch, torchvision and pillow; prints nothing."""
