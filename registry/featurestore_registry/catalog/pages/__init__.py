"""One module for each page, or for a few that are alike: each function makes the page of one address."""
