"""Local tools: declared in JSON, checked, approved, run in a process of their own."""
