from benchmarks.file_mutations import run


def test_a_mutated_file_gives_the_same_bars_or_the_obstacle():
    outcomes = run(500, seed=11)
    assert [fault for outcome in outcomes.values() for fault in outcome.faults] == []
    assert min(outcomes["form"].read, sum(outcomes["form"].refused.values())) > 100
    assert outcomes["value"].read == 100
