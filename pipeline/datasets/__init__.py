"""From the folder that a data set's publisher hands out to manifests, with a report."""
