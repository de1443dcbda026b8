"""From predictions and category scores to one decision: fusion, sizing, the compiled decision kernel."""
