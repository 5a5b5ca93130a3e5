"""The two processes behind `lib.metrics.sandbox`: one runs the program, the other knows the answers; both confined."""
