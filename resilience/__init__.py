"""May this call start, and what did we learn from it: circuits and limits shared by a whole fleet."""
