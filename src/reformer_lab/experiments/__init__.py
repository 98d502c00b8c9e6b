"""The paper's claims and the experiments that test them: declarations only, free of torch."""
