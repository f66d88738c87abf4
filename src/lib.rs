//! Crossover.
