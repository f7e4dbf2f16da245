"""Load tests with NVIDIA's perf_analyzer: profiles, their inputs, the runner, figures and reports."""
