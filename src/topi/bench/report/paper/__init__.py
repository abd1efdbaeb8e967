"""The artefacts of the paper: tables, figures and claims."""
