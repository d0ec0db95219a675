"""Training code of nano: rendered clips, captions and the model fitted to them."""
