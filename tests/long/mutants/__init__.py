"""Single mistakes in the program that a seed chose, and the tests that find them.  (No claims.)

`kinds` knows the mistakes that Python's syntax allows, `draw` chooses among them, `covering` knows
which tests run a line, `run` makes each mistake in a forked process and runs those tests there.
`equivalent` lists the mistakes that nobody can see.
"""
