"""Token maps for people: panels of HTML, a page, and PNG files."""
