"""savvi: the evidence against a split."""

from __future__ import annotations

import cases
import numpy as np
from savvi.multinomial import Multinomial


def main() -> None:
    found = []
    for counts, shares in cases.COUNTS:
        for k in (100, 1_000):
            test = Multinomial(0.05, np.array(shares), k=k)
            test.update(np.array(counts))
            found.append({"counts": counts, "shares": shares, "k": k, "evidence": float(test.odds)})
    cases.write("savvi_numbers", ["savvi", "numpy", "scipy"], {"split": found})


if __name__ == "__main__":
    main()
