//! How the work is divided among sessions.

use std::collections::VecDeque;

use super::tables::{Blocks, Table};

const MIB: u64 = 1024 * 1024;
/// Tables up to this size, with TOAST, go into packs.
const SMALL_TABLE: u64 = 4 * MIB;
/// What one pack holds, as the server counts it.
const PACK_BYTES: u64 = 64 * MIB;
const PACK_TABLES: usize = 2000;
/// Bounds of what is read as one range.
const RANGE_BYTES: std::ops::RangeInclusive<u64> = 32 * MIB..=1024 * MIB;
/// So many pieces a session, so that all sessions end at about the same time.
const PIECES_A_JOB: u64 = 6;
/// A table of up to so many times what each session reads is read by one, but for its end. To compress rows takes nearly
/// as long as to read them, so this keeps as many cores busy. Ranges of blocks cost the server more: it reads them without
/// its ring of buffers for large tables, and puts out of its cache what others use (`heap_beginscan` and `initscan` in
/// `heapam.c`).
const WHOLE_SHARES: u64 = 2;
/// What that session reads, in tenths of such a share: the rest of the table is a range for another one.
const WHOLE_TENTHS: u64 = 14;

/// What is a small table, and what is read as one range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sizes {
    small_table: u64,
    largest_range: u64,
    smallest_range: u64,
    whole_shares: u64,
    whole_tenths: u64,
}

impl Default for Sizes {
    fn default() -> Self {
        let (smallest_range, largest_range) = RANGE_BYTES.into_inner();
        Self {
            small_table: SMALL_TABLE,
            smallest_range,
            largest_range,
            whole_shares: WHOLE_SHARES,
            whole_tenths: WHOLE_TENTHS,
        }
    }
}

impl Sizes {
    /// Ranges of this size, no table that is larger than one in a pack, and none read whole that can be divided.
    pub(super) fn of(range_bytes: u64) -> Self {
        let range_bytes = range_bytes.max(1);
        Self {
            small_table: SMALL_TABLE.min(range_bytes),
            smallest_range: range_bytes,
            largest_range: range_bytes,
            whole_shares: 0,
            whole_tenths: 0,
        }
    }
}

/// A piece of work for one session. Tables are numbers in the list of tables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Task {
    /// Rows of a table, or of some of its blocks.
    Rows { table: usize, blocks: Option<Blocks> },
    /// Small tables, one after another into one part.
    Pack(Vec<usize>),
    /// Large objects with OIDs of this range.
    LargeObjects { from: u32, to: u32 },
}

/// What is to be done.
#[derive(Debug)]
pub(super) struct Plan {
    /// The largest first: with the small ones last no session waits long for another.
    pub(super) tasks: VecDeque<Task>,
    /// Rows are stored in chunks of about so many bytes, which sessions of a restore can share.
    pub(super) chunk_bytes: u64,
}

/// Divides the work.
pub(super) fn plan(
    tables: &[Table],
    large_objects: &[(u32, u32)],
    large_object_bytes: u64,
    jobs: usize,
    sizes: Sizes,
) -> Plan {
    let all: u64 = tables.iter().map(|table| table.bytes).sum::<u64>() + large_object_bytes;
    let range_bytes = (all / (jobs as u64 * PIECES_A_JOB)).clamp(sizes.smallest_range, sizes.largest_range);
    let mut weighed = Vec::new();
    let (mut pack, mut pack_bytes) = (Vec::new(), 0);
    for (number, table) in tables.iter().enumerate() {
        if table.bytes <= sizes.small_table && !table.foreign {
            if pack.len() == PACK_TABLES || pack_bytes + table.bytes > PACK_BYTES {
                weighed.push((pack_bytes, Task::Pack(std::mem::take(&mut pack))));
                pack_bytes = 0;
            }
            pack.push(number);
            pack_bytes += table.bytes;
            continue;
        }
        let pieces = table.bytes.div_ceil(range_bytes).clamp(1, table.blocks.max(1));
        let share = all / jobs as u64;
        let most = share * sizes.whole_tenths / 10;
        if pieces == 1 || !table.is_divisible() || table.bytes <= most {
            weighed.push((table.bytes, Task::Rows { table: number, blocks: None }));
            continue;
        }
        if table.bytes <= share * sizes.whole_shares {
            let end = u64::try_from(u128::from(table.blocks) * u128::from(most) / u128::from(table.bytes));
            let end = end.unwrap_or(table.blocks).clamp(1, table.blocks - 1);
            let range = |from, to| Task::Rows { table: number, blocks: Some(Blocks { from, to }) };
            weighed.push((most, range(0, Some(end))));
            weighed.push((table.bytes - most, range(end, None)));
            continue;
        }
        let blocks = table.blocks.div_ceil(pieces);
        let pieces = table.blocks.div_ceil(blocks);
        for piece in 0..pieces {
            let to = (piece + 1 < pieces).then_some((piece + 1) * blocks);
            let range = Blocks { from: piece * blocks, to };
            weighed.push((table.bytes / pieces, Task::Rows { table: number, blocks: Some(range) }));
        }
    }
    if !pack.is_empty() {
        weighed.push((pack_bytes, Task::Pack(pack)));
    }
    let each = large_object_bytes / (large_objects.len() as u64).max(1);
    weighed
        .extend(large_objects.iter().map(|(from, to)| (each, Task::LargeObjects { from: *from, to: *to })));
    weighed.sort_by_key(|(weight, _)| std::cmp::Reverse(*weight));
    Plan { tasks: weighed.into_iter().map(|(_, task)| task).collect(), chunk_bytes: range_bytes }
}

#[cfg(test)]
mod tests {
    use super::super::super::archive::Entry;
    use super::*;

    fn table(blocks: u64, toast: u64) -> Table {
        let entry = Entry { copy: Some(b"COPY public.t (a) FROM stdin;\n".to_vec()), ..Entry::default() };
        let mut table = Table::new(&entry, "public".into(), "t".into());
        (table.heap, table.blocks, table.bytes) = (true, blocks, blocks * 8192 + toast);
        table
    }

    proptest::proptest! {
        /// Every block of every table is read exactly once, and small tables are in exactly one pack.
        #[test]
        fn nothing_is_left_out_or_read_twice(
            sizes in proptest::collection::vec((0_u64..2_000_000, 0_u64..4 << 30), 0..20), jobs in 1_usize..9
        ) {
            let tables: Vec<Table> = sizes.iter().map(|(blocks, toast)| table(*blocks, *toast)).collect();
            let tasks = plan(&tables, &[], 0, jobs, Sizes::default()).tasks;
            for (number, table) in tables.iter().enumerate() {
                let packs = tasks.iter().filter(|t| matches!(t, Task::Pack(pack) if pack.contains(&number))).count();
                let mut ranges: Vec<_> = tasks.iter().filter_map(|t| match t {
                    Task::Rows { table, blocks } if *table == number => Some(*blocks),
                    _ => None,
                }).collect();
                ranges.sort_by_key(|blocks| blocks.map(|blocks| blocks.from));
                if let [None] = ranges[..] {
                    proptest::prop_assert_eq!(packs, 0);
                    continue;
                }
                proptest::prop_assert_eq!(packs, usize::from(ranges.is_empty()));
                let mut next = 0;
                for (i, blocks) in ranges.iter().enumerate() {
                    let blocks = blocks.unwrap();
                    proptest::prop_assert_eq!(blocks.from, next);
                    proptest::prop_assert_eq!(blocks.to.is_none(), i + 1 == ranges.len());
                    next = blocks.to.unwrap_or_default();
                    proptest::prop_assert!(blocks.to.is_none_or(|to| to > blocks.from && to < table.blocks));
                }
            }
        }
    }

    #[test]
    fn toast_counts_when_a_table_is_divided() {
        let tasks = plan(&[table(3000, 4 << 30)], &[], 0, 3, Sizes::default()).tasks;
        assert!(tasks.len() >= 8, "{tasks:?}");
    }

    #[test]
    fn a_table_is_divided_only_where_its_session_would_be_the_last() {
        let of = |table: usize, tasks: &VecDeque<Task>| {
            tasks.iter().filter(|t| matches!(t, Task::Rows { table: of, .. } if *of == table)).count()
        };
        let tables = [table(600_000, 0), table(200_000, 0), table(200_000, 0)];
        for (jobs, pieces, of_others) in [(1, 1, 1), (2, 1, 1), (3, 2, 1), (4, 15, 1), (8, 29, 2)] {
            let tasks = plan(&tables, &[], 0, jobs, Sizes::default()).tasks;
            assert_eq!(
                (of(0, &tasks), of(1, &tasks), of(2, &tasks)),
                (pieces, of_others, of_others),
                "{jobs} jobs"
            );
        }
        let alone = plan(&[table(100_000, 0)], &[], 0, 2, Sizes::default()).tasks;
        let range = |from, to| Task::Rows { table: 0, blocks: Some(Blocks { from, to }) };
        assert_eq!(alone, [range(0, Some(70_000)), range(70_000, None)]);
    }
}
