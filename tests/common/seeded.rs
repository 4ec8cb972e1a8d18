//! Chance that can be repeated.

/// A small generator (xorshift): what is drawn is told by the seed.
pub struct Seeded(u64);

impl Seeded {
    /// Seeds that follow each other draw nothing alike.
    pub fn of(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// A number below `below`.
    pub fn draw(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % below
    }

    /// One of `some`.
    pub fn one_of<T: Copy>(&mut self, some: &[T]) -> T {
        some[self.draw(some.len() as u64) as usize]
    }
}
