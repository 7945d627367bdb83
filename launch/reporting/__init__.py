"""The parts of `launch.report`: runs and measurements -> one document -> tables, plots, a page."""
