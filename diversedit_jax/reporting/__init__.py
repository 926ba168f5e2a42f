"""What runs recorded of themselves, and the page that shows it: report/index.html."""
