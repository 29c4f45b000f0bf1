"""Chat templates: messages become a prompt, in a process of its own that is held to limits."""
