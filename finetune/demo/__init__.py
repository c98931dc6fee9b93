"""The command `demo`: a page in the browser that predicts while you type and switches attention heads off."""
