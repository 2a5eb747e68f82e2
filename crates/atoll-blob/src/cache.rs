//! A cache that leaves room for what is read ahead.

use std::hash::Hash;

use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{DefaultHashBuilder, OptionsBuilder, Weighter};

/// The part that entries keep which were used again. The rest holds what was read ahead until its reader comes: windows
/// of several readers.
const HOT: f64 = 0.5;

/// Room for `bytes_max`, about `items` entries.
pub fn cache<K, V, W>(items: usize, bytes_max: u64, weighter: W) -> Cache<K, V, W>
where
    K: Eq + Hash,
    V: Clone,
    W: Weighter<K, V> + Clone,
{
    let mut options = OptionsBuilder::new();
    options.estimated_items_capacity(items).weight_capacity(bytes_max).hot_allocation(HOT);
    let options = options.build().expect("both capacities are given");
    Cache::with_options(options, weighter, DefaultHashBuilder::default(), DefaultLifecycle::default())
}

#[cfg(test)]
mod tests {
    use quick_cache::UnitWeighter;

    use super::*;

    #[test]
    fn what_was_read_before_does_not_push_out_what_is_read_ahead() {
        let cache = cache(4096, 4096, UnitWeighter);
        for key in 0..8192 {
            cache.insert(key, ());
            assert_eq!(cache.get(&key), Some(()));
        }
        (8192..9216).for_each(|key| cache.insert(key, ()));
        let there = (8192..9216).filter(|key| cache.contains_key(key)).count();
        assert_eq!(there, 1024);
    }
}
