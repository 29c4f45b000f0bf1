"""The folder that export wrote: every file checked before it is trusted, and the variant that fits this machine."""
