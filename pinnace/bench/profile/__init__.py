"""Where the time of a bundle goes: by layer of the model, by part, by operator."""
