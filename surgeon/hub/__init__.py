"""To and from the Hugging Face Hub: what a push sends, sending it, and rebuilding what was published."""
