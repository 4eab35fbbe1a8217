"""Two tanks, of which pythonfmu makes an FMU: pythonfmu build -f tanks.py."""

from math import sqrt

from pythonfmu import Fmi2Causality, Fmi2Initial, Fmi2Slave, Fmi2Variability, Real


class Tanks(Fmi2Slave):
    """The upper tank is filled, and drains through a hole into the lower one, which drains too."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.inflow, self.upper, self.lower = 1.0, 1.0, 1.0
        state = {"causality": Fmi2Causality.output, "initial": Fmi2Initial.exact}
        self.register_variable(Real("inflow", causality=Fmi2Causality.input, start=1.0))
        self.register_variable(Real("upper", variability=Fmi2Variability.continuous, start=1.0, **state))
        self.register_variable(Real("lower", variability=Fmi2Variability.continuous, start=1.0, **state))

    def rates(self, upper, lower):
        """Return how fast the levels change."""
        first, second = sqrt(max(upper, 0.0)), sqrt(max(lower, 0.0))
        return self.inflow - first, first - second

    def do_step(self, current_time, step_size):
        """Go on by one step of the co-simulation."""
        h = step_size / 10  # ten steps of Heun's method
        for _ in range(10):
            k1 = self.rates(self.upper, self.lower)
            k2 = self.rates(self.upper + h * k1[0], self.lower + h * k1[1])
            self.upper += h / 2 * (k1[0] + k2[0])
            self.lower += h / 2 * (k1[1] + k2[1])
        return True
