"""The proven rates of SGD, signSGD and the majority vote, beside the gradient norms that they bound.

For f with curvatures L, noise sigma (both by coordinate), K steps (Bernstein et al. 2018; norms by coordinate):

SGD        batch 1, lr 1 / (Linf sqrt(K)):      mean |g|_2^2 <= (2 Linf (f0 - f*) + |sigma|_2^2) / sqrt(K)
signSGD    batch K, lr 1 / sqrt(|L|_1 K):       mean |g|_1   <= (sqrt(|L|_1) (f0 - f* + 1/2) + 2 |sigma|_1) / sqrt(K)
M voters   the same, symmetric noise, one peak: mean |g|_1   <= (... + 2 |sigma|_1 / sqrt(M)) / sqrt(K)

(Theorem 1 for a single worker, Theorem 2 (b) for votes; both there with squares on each side, and sqrt(N) = K where N
= K^2 gradients have been used.) In short: a step lowers f on average by lr |g|_1, but for 2 lr sum |g_i| P(sign i is
wrong) and lr^2 |L|_1 / 2; |g_i| P(wrong) is at most sigma_i / sqrt(batch) by Markov, over sqrt(M) by
`error_probability`; the sum over steps telescopes.

Problems: that of `toy_problem` (|L|_1 = 100, |sigma|_1 = 100, f0 - f* = 50 on average), and 1,000 dimensions with
unit noise started at the optimum, where nothing but noise is left to bound (f0 = f*, so that M shows). A mean of K
gradients with Gaussian noise is drawn as such, with noise sigma / sqrt(K). The mean of SGD's norms is also known
exactly, and that of signSGD by the walk of `chains`.
"""

import math
import sys

import numpy as np
from ballots import majority, noisy_gradients
from chains import Walk
from reporting import FLOATS, THEORY, VOTES, Progress, arguments, at_most, exit_status, finish, panels, within

TOY_DIMENSIONS, TOY_NOISE = 100, 100.0
DIMENSIONS = 1000


def sgd_bound(k: int) -> float:
    return (2 * TOY_DIMENSIONS / 2 + TOY_NOISE**2) / math.sqrt(k)


def sgd_expected(k: int) -> float:
    """The mean over steps of E |x|_2^2, summed in closed form as in `toy_problem`."""
    lr = 1 / math.sqrt(k)
    q = (1 - lr) ** (2 * np.arange(k))
    noise = lr**2 * TOY_NOISE**2 / (1 - (1 - lr) ** 2)
    return float((TOY_DIMENSIONS * q + noise * (1 - q)).mean())


def sgd(rng, k: int, repeats: int) -> float:
    """The mean of |g|_2^2."""
    lr, x, total = 1 / math.sqrt(k), rng.standard_normal((repeats, TOY_DIMENSIONS)), 0.0
    for _ in range(k):
        total += (x**2).sum() / repeats
        gradient = x.copy()
        gradient[:, 0] += TOY_NOISE * rng.standard_normal(repeats)
        x -= lr * gradient
    return total / k


def signsgd_bound(k: int, dimensions: int, distance: float, noise: float, voters: int = 1) -> float:
    """`distance`: f0 - f*; `noise`: |sigma|_1."""
    return (math.sqrt(dimensions) * (distance + 0.5) + 2 * noise / math.sqrt(voters)) / math.sqrt(k)


def signsgd(rng, k: int, repeats: int) -> float:
    """The mean of |g|_1 on the toy problem."""
    lr, x, total = 1 / math.sqrt(TOY_DIMENSIONS * k), rng.standard_normal((repeats, TOY_DIMENSIONS)), 0.0
    for _ in range(k):
        total += np.abs(x).sum() / repeats
        gradient = x.copy()
        gradient[:, 0] += TOY_NOISE / math.sqrt(k) * rng.standard_normal(repeats)
        x -= lr * majority(gradient.reshape(1, -1)).reshape(x.shape)
    return total / k


def signsgd_expected(k: int) -> float:
    """The same by the walks of a coordinate with noise and of one without."""
    lr = 1 / math.sqrt(TOY_DIMENSIONS * k)
    # No walk without noise leaves (-7, 7), and one with noise goes at most some standard deviations of k free steps on.
    reach = 7 + min(lr * k, 6 * lr * math.sqrt(k) + 1)
    noisy, still, total = Walk(lr, TOY_NOISE / math.sqrt(k), reach), Walk(lr, 0.0, 7), 0.0
    for _ in range(k):
        total += noisy.mean(np.abs) + (TOY_DIMENSIONS - 1) * still.mean(np.abs)
        noisy.step()
        still.step()
    return total / k


def votes(rng, k: int, voters: int) -> float:
    """The mean of |g|_1 in 1,000 dimensions with unit noise, started at the optimum."""
    lr, x, total = 1 / math.sqrt(DIMENSIONS * k), np.zeros(DIMENSIONS), 0.0
    for _ in range(k):
        total += np.abs(x).sum()
        x -= lr * majority(noisy_gradients(rng, x, voters, 1 / math.sqrt(k)))
    return total / k


def votes_expected(k: int, voters: int) -> float:
    lr = 1 / math.sqrt(DIMENSIONS * k)
    walk, total = Walk(lr, 1 / math.sqrt(k), 30 * lr * math.sqrt(k) + 20 * lr, voters, start=0.0), 0.0
    for _ in range(k):
        total += DIMENSIONS * walk.mean(np.abs)
        walk.step()
    return total / k


def main(argv=None):
    args = arguments(__doc__, "rates", argv)
    rng = np.random.default_rng(args.seed)
    steps = [30, 300] if args.fast else [10, 30, 100, 300, 1000, 3000]
    repeats = 100  # of 100 coordinates each: a mean is known to 1.4 %
    checks, toy = [], {}
    for k in Progress(steps, "steps", unit="number"):
        toy[k] = sgd(rng, k, 4 * repeats), signsgd(rng, k, repeats)
        checks.append(at_most(f"SGD, {k:,} steps: mean of |g|_2^2", sgd_bound(k), toy[k][0]))
        checks.append(within("    as derived", sgd_expected(k), toy[k][0], 15))
        bound = signsgd_bound(k, TOY_DIMENSIONS, TOY_DIMENSIONS / 2, TOY_NOISE)
        checks.append(at_most(f"signSGD, {k:,} steps: mean of |g|_1", bound, toy[k][1]))
        checks.append(within("    as derived", signsgd_expected(k), toy[k][1], 5))
    k, shared = (100, {}) if args.fast else (1000, {})
    for voters in Progress([1, 9] if args.fast else [1, 2, 3, 9, 27, 81], "voters", unit="number"):
        shared[voters] = votes(rng, k, voters)
        bound = signsgd_bound(k, DIMENSIONS, 0.0, DIMENSIONS, voters)
        checks.append(at_most(f"{voters} voters, {k:,} steps: mean of |g|_1", bound, shared[voters]))
        checks.append(within("    as derived", votes_expected(k, voters), shared[voters], 5))
    return finish(checks, draw(toy, k, shared), args.out)


def draw(toy, k, shared):
    figure, (left, middle, right) = panels(3)
    steps = list(toy)
    left.plot(steps, [sgd_bound(n) for n in steps], color=THEORY, ls="--", label="bound")
    left.plot(steps, [sgd_expected(n) for n in steps], color=THEORY, lw=1, ls=":", label="derived")
    left.plot(steps, [toy[n][0] for n in steps], "o", color=FLOATS, label="SGD")
    left.set(xlabel="steps K", ylabel="mean of |g|₂²", xscale="log", yscale="log", title="toy problem, batch 1")
    bound = [signsgd_bound(n, TOY_DIMENSIONS, TOY_DIMENSIONS / 2, TOY_NOISE) for n in steps]
    middle.plot(steps, bound, color=THEORY, ls="--", label="bound of Theorem 1")
    middle.plot(steps, [signsgd_expected(n) for n in steps], color=THEORY, lw=1, ls=":", label="derived")
    middle.plot(steps, [toy[n][1] for n in steps], "o", color=VOTES, label="signSGD")
    middle.set(xlabel="steps K", ylabel="mean of |g|₁", xscale="log", yscale="log", title="toy problem, batch K")
    ms = list(shared)
    bound = [signsgd_bound(k, DIMENSIONS, 0.0, DIMENSIONS, m) for m in ms]
    right.plot(ms, bound, color=THEORY, ls="--", label="bound of Theorem 2 (b)")
    right.plot(ms, [votes_expected(k, m) for m in ms], color=THEORY, lw=1, ls=":", label="derived")
    right.plot(ms, [shared[m] for m in ms], "o", color=VOTES, label="majority vote")
    right.set(xlabel="voters M", ylabel="mean of |g|₁", xscale="log", yscale="log")
    right.set_title(f"from the optimum, batch K = {k:,}")
    for axis in (left, middle, right):
        axis.legend(frameon=False, fontsize=8)
    return figure


if __name__ == "__main__":
    sys.exit(exit_status(main()))
