"""The published edge system: servers, links, tasks, arrivals, and what no policy can beat."""
