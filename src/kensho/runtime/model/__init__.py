"""What a delivered model says about itself: config.json, families, tensors. Pure, but for opening files."""
