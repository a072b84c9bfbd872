//! Which objects are read when not all are.

use xxhash_rust::xxh3::xxh3_64_with_seed;

/// A part of all objects, chosen by a seed: the same seed chooses the same.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Sample {
    /// How many of a hundred; of each backup at least one.
    pub percent: f64,
    /// What chooses them.
    pub seed: u64,
}

impl Sample {
    /// So many of a hundred.
    pub fn new(percent: f64, seed: u64) -> Self {
        Self { percent, seed }
    }

    /// So many of a hundred, others each time.
    pub fn random(percent: f64) -> Self {
        // JSON readers take numbers of this size for what they are.
        Self {
            percent,
            seed: u64::try_from(ulid::Ulid::generate().random() & u128::from(u32::MAX)).unwrap_or(0),
        }
    }

    /// Chooses among things by their names; in their order.
    pub(super) fn choose<T>(&self, all: Vec<T>, name: impl Fn(&T) -> String) -> Vec<T> {
        #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let count = (all.len() as f64 * self.percent / 100.0).ceil() as usize;
        let mut ranked: Vec<(u64, usize)> = all
            .iter()
            .enumerate()
            .map(|(n, thing)| (xxh3_64_with_seed(name(thing).as_bytes(), self.seed), n))
            .collect();
        ranked.sort_unstable();
        let mut chosen: Vec<usize> = ranked.into_iter().take(count.max(1)).map(|(_, n)| n).collect();
        chosen.sort_unstable();
        let mut chosen = chosen.into_iter().peekable();
        let take = |(n, thing)| chosen.next_if_eq(&n).map(|_| thing);
        all.into_iter().enumerate().filter_map(take).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_chooses_the_same_and_another_one_others() {
        let all: Vec<u32> = (0..1000).collect();
        let choose = |percent, seed| Sample::new(percent, seed).choose(all.clone(), u32::to_string);
        assert_eq!(choose(5.0, 7).len(), 50);
        assert_eq!(choose(5.0, 7), choose(5.0, 7));
        assert_ne!(choose(5.0, 7), choose(5.0, 8));
        assert_eq!(choose(0.001, 7).len(), 1);
        assert_eq!(choose(100.0, 7), all);
        assert!(choose(50.0, 1).is_sorted());
        assert_eq!(Sample::new(5.0, 1).choose(Vec::<u32>::new(), u32::to_string), [0_u32; 0]);
    }
}
