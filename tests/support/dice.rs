//! Chance that can be repeated: `PGARK_TEST_SEED` begins it.

use std::time::{Duration, SystemTime};

/// `SplitMix64`.
pub struct Dice(u64);

impl Dice {
    /// Begins with the seed of the environment, else with the time, and prints it: the output of a failed test has it.
    pub fn new() -> Self {
        let seed =
            std::env::var("PGARK_TEST_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(|| {
                let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
                u64::try_from(now.as_nanos() & u128::from(u64::MAX)).unwrap()
            });
        println!("PGARK_TEST_SEED={seed}");
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number from 0 to below `end`.
    pub fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(end.max(1)).unwrap()).unwrap()
    }

    /// A time up to `longest`.
    pub fn time(&mut self, longest: Duration) -> Duration {
        let micros = usize::try_from(longest.as_micros()).unwrap();
        Duration::from_micros(u64::try_from(self.below(micros)).unwrap())
    }
}
