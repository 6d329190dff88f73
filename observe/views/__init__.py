"""What the page shows: a module each for what is asked, and for each thing that is looked at."""
