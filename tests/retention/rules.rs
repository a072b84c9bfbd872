//! Rules as pure functions, against what they are said to mean, written another way.

use std::collections::{BTreeMap, BTreeSet};

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use pgark::repository::{BackupId, BackupSummary};
use pgark::retention::{Decision, Known, Rules, decide};
use proptest::prelude::*;

use crate::support::shelf::{Fake, time};

fn summaries(fakes: &[Fake]) -> Vec<BackupSummary> {
    let mut all: Vec<BackupSummary> =
        fakes.iter().map(|fake| serde_json::from_value(fake.summary()).unwrap()).collect();
    all.sort_by(|a, b| (a.started, &a.id).cmp(&(b.started, &b.id)));
    all
}

fn kept(decisions: &[Decision]) -> BTreeSet<String> {
    assert!(decisions.iter().all(|d| !d.reasons.is_empty()), "each has a reason: {decisions:?}");
    decisions.iter().filter(|d| d.keep).map(|d| d.id.to_string()).collect()
}

fn berlin() -> TimeZone {
    TimeZone::get("Europe/Berlin").unwrap()
}

/// The times that rules keep of one logical series.
fn times_kept(rules: &Rules, times: &[&str], now: &str) -> Vec<String> {
    let fakes: Vec<Fake> =
        times.iter().enumerate().map(|(n, at)| Fake::logical(time(at), "shop", n)).collect();
    let decisions = decide(rules, &summaries(&fakes), &Known::default(), time(now));
    let kept = kept(&decisions);
    fakes.iter().filter(|fake| kept.contains(&fake.id())).map(|fake| fake.at.to_string()).collect()
}

#[test]
fn days_begin_in_the_zone_and_clocks_are_set_back() {
    let mut rules = Rules::default();
    rules.zone = berlin();
    rules.hourly = Some(2);
    // 02:30 is there twice on this day: in summer time and an hour later.
    let night = ["2026-10-24T23:30:00Z", "2026-10-25T00:30:00Z", "2026-10-25T01:30:00Z"];
    assert_eq!(times_kept(&rules, &night, "2026-10-26T00:00:00Z"), &night[1..]);

    let mut rules = Rules::default();
    rules.zone = berlin();
    rules.daily = Some(2);
    // The second is of the next day there, which has 23 hours.
    let days =
        ["2026-03-28T22:30:00Z", "2026-03-28T23:30:00Z", "2026-03-29T21:30:00Z", "2026-03-29T22:30:00Z"];
    assert_eq!(times_kept(&rules, &days, "2026-04-01T00:00:00Z"), &days[2..]);
    rules.daily = Some(3);
    assert_eq!(times_kept(&rules, &days, "2026-04-01T00:00:00Z"), [days[0], days[2], days[3]]);
    rules.zone = TimeZone::UTC;
    assert_eq!(
        times_kept(&rules, &days, "2026-04-01T00:00:00Z"),
        [days[0], days[1], days[3]],
        "the oldest, too"
    );
}

#[test]
fn weeks_are_iso_weeks_also_at_the_end_of_the_year() {
    let mut rules = Rules::default();
    rules.weekly = Some(2);
    // Week 53 of 2026 ends on Sunday, 3 January 2027.
    let days =
        ["2026-12-27T12:00:00Z", "2026-12-31T12:00:00Z", "2027-01-03T12:00:00Z", "2027-01-04T12:00:00Z"];
    assert_eq!(times_kept(&rules, &days, "2027-02-01T00:00:00Z"), &days[2..]);
    // 30 December 2024 is in week 1 of 2025, as are days of January; and years are those of the calendar.
    let days = ["2024-12-29T12:00:00Z", "2024-12-30T12:00:00Z", "2025-01-05T12:00:00Z"];
    assert_eq!(times_kept(&rules, &days, "2025-02-01T00:00:00Z"), [days[0], days[2]]);
    let mut rules = Rules::default();
    rules.yearly = Some(2);
    assert_eq!(times_kept(&rules, &days, "2025-02-01T00:00:00Z"), [days[1], days[2]]);
}

#[test]
fn ages_count_from_the_newest_and_windows_from_now() {
    let days =
        ["2026-11-01T00:00:00Z", "2026-11-10T00:00:00Z", "2026-11-14T00:00:00Z", "2026-11-21T00:00:00Z"];
    let mut rules = Rules::default();
    rules.within = Some("7d".parse().unwrap());
    for now in ["2026-11-21T01:00:00Z", "2027-11-21T01:00:00Z"] {
        assert_eq!(times_kept(&rules, &days, now), &days[2..], "nothing ages where no backups are made");
    }
    // One from the future does not push the others out, and stays.
    assert_eq!(times_kept(&rules, &days, "2026-11-20T00:00:00Z"), &days[1..]);
    let mut rules = Rules::default();
    rules.recovery_window = Some("7d".parse().unwrap());
    assert_eq!(times_kept(&rules, &days, "2026-11-21T01:00:00Z"), &days[2..]);
    assert_eq!(
        times_kept(&rules, &days, "2026-11-20T12:00:00Z"),
        &days[1..],
        "it begins with one from before"
    );
    assert_eq!(times_kept(&rules, &days, "2026-12-21T01:00:00Z"), &days[3..]);
    for wrong in ["6m", "0d", "-3d", "soon", "30s", "7", ""] {
        assert!(wrong.parse::<pgark::retention::Period>().is_err(), "{wrong}");
    }
}

#[test]
fn what_is_not_good_pushes_nothing_out() {
    let at = |day: i8| time("2026-11-01T00:00:00Z") + SignedDuration::from_hours(24 * i64::from(day));
    let now = at(30);
    let mut rules = Rules::default();
    rules.last = Some(1);
    let of = |fakes: &[Fake], known: &Known| {
        let kept = kept(&decide(&rules, &summaries(fakes), known, now));
        fakes.iter().map(|fake| kept.contains(&fake.id())).collect::<Vec<_>>()
    };
    let server = |day, n| Fake::logical(at(day), "", n).with("databases", serde_json::json!(["a"]));
    let partial = server(3, 3).with("partial", true);
    let fakes = [server(1, 1), server(2, 2), partial.clone(), Fake::logical(at(4), "shop", 4)];
    assert_eq!(
        of(&fakes, &Known::default()),
        [false, true, true, true],
        "nothing good followed the partial one"
    );
    let fakes = [server(2, 2), partial, server(4, 4)];
    assert_eq!(of(&fakes, &Known::default()), [false, false, true]);

    // A damaged one does not count, and what builds on it does not either.
    let full = Fake::physical(at(1), 1, 1, 1);
    let second = Fake::physical(at(2), 2, 2, 2);
    let child = Fake::physical(at(3), 3, 3, 3).on(&second);
    let fakes = [full, second.clone(), child.clone()];
    assert_eq!(of(&fakes, &Known::default()), [false, true, true]);
    let mut known = Known::default();
    known.damaged.insert(second.id().parse().unwrap());
    assert_eq!(of(&fakes, &known), [true, true, true]);
    let mut known = Known::default();
    known.verified.insert(fakes[0].id().parse().unwrap());
    assert_eq!(of(&fakes, &known), [true, true, true], "the newest verified one stays");

    // A selection, an import and another database are series of their own.
    let selection = Fake::logical(at(5), "shop", 5).with("selection", true);
    let import = Fake::logical(at(6), "shop", 6).with("imported", "custom");
    let fakes = [Fake::logical(at(1), "shop", 1), Fake::logical(at(2), "blog", 2), selection, import];
    assert_eq!(of(&fakes, &Known::default()), [true; 4]);

    let mut known = Known::default();
    let fakes =
        [Fake::logical(at(1), "shop", 1), Fake::logical(at(2), "shop", 2), Fake::logical(at(3), "shop", 3)];
    known.pinned.insert(fakes[0].id().parse().unwrap(), None);
    known.pinned.insert(fakes[1].id().parse().unwrap(), Some(at(29)));
    assert_eq!(of(&fakes, &known), [true, false, true], "a pin that is over does not count");
    let mut known = Known::default();
    known.running.push((fakes[2].id().parse().unwrap(), Some(fakes[0].id().parse().unwrap())));
    assert_eq!(of(&fakes, &known), [true, false, true], "a run at work builds on it");
}

#[test]
fn no_rules_are_refused() {
    let mut rules = Rules::default();
    assert!(rules.policy().is_err());
    (rules.minimum, rules.daily) = (Some(3), Some(0));
    assert!(rules.policy().is_err(), "a minimum says nothing of what may go");
    rules.yearly = Some(1);
    assert!(rules.policy().is_ok());
}

// What the rules mean, written from the backup's side: nothing here goes from newest to oldest.

fn names(at: Timestamp, zone: &TimeZone) -> [String; 5] {
    let at = at.to_zoned(zone.clone());
    ["%Y-%m-%d %H %z", "%Y-%m-%d", "%G-%V", "%Y-%m", "%Y"].map(|format| at.strftime(format).to_string())
}

/// Of one series: good ones, oldest first.
fn expected(rules: &Rules, good: &[&Fake], now: Timestamp) -> BTreeSet<String> {
    let mut expected = BTreeSet::new();
    let counts = [rules.hourly, rules.daily, rules.weekly, rules.monthly, rules.yearly];
    for (n, fake) in good.iter().enumerate() {
        let newer = good.len() - n - 1;
        let by_number = [rules.last, rules.minimum].iter().flatten().any(|count| newer < *count);
        let by_tier = (0..5).any(|tier| {
            let Some(count) = counts[tier] else { return false };
            let bucket = |fake: &Fake| names(fake.at, &rules.zone)[tier].clone();
            let own = bucket(fake);
            let later: BTreeSet<String> =
                good[n + 1..].iter().map(|other| bucket(other)).filter(|other| *other != own).collect();
            let newest_of_its = good[n + 1..].iter().all(|other| bucket(other) != own);
            let all: BTreeSet<String> = good.iter().map(|other| bucket(other)).collect();
            (newest_of_its && later.len() < count) || (n == 0 && all.len() < count)
        });
        let since = |period: &pgark::retention::Period, from| period.before(from, &rules.zone);
        let by_age = rules.within.is_some_and(|period| fake.at >= since(&period, good[good.len() - 1].at));
        let by_window = rules.recovery_window.is_some_and(|period| {
            let since = since(&period, now);
            fake.at > since || good[n + 1..].iter().all(|later| later.at > since || later.at == fake.at)
        });
        if newer == 0 || by_number || by_tier || by_age || by_window {
            expected.insert(fake.id());
        }
    }
    expected
}

#[derive(Debug, Clone)]
struct Case {
    fakes: Vec<Fake>,
    rules: Rules,
    known: Known,
    now: Timestamp,
}

fn rules() -> impl Strategy<Value = Rules> {
    let count = || proptest::option::weighted(0.4, 1_usize..6);
    let period =
        || proptest::option::weighted(0.3, prop_oneof!["[1-9]d", "[1-4]w", "[1-3]mo", "[1-9][0-9]h"]);
    let counts = (count(), count(), count(), count(), count(), count(), count());
    (counts, period(), period(), 0..3_usize).prop_filter_map("no rules", |(counts, within, window, zone)| {
        let mut rules = Rules::default();
        let (last, hourly, daily, weekly, monthly, yearly, minimum) = counts;
        (rules.last, rules.hourly, rules.daily, rules.weekly) = (last, hourly, daily, weekly);
        (rules.monthly, rules.yearly, rules.minimum) = (monthly, yearly, minimum);
        rules.within = within.map(|text| text.parse().unwrap());
        rules.recovery_window = window.map(|text| text.parse().unwrap());
        rules.zone = [TimeZone::UTC, berlin(), TimeZone::get("Asia/Kathmandu").unwrap()][zone].clone();
        (!rules.is_empty()).then_some(rules)
    })
}

fn case() -> impl Strategy<Value = Case> {
    // Steps between backups: minutes to weeks, so that hours and years both happen.
    let step = prop_oneof![600_i64..7200, 40_000_i64..100_000, 300_000_i64..3_000_000];
    let one = (step, 0..6_usize, proptest::option::weighted(0.5, 1..4_usize), 0..20_u8);
    // The clocks change on 25 October 2026, and so does the year not much later.
    let begin = time("2026-10-20T10:00:00Z");
    (proptest::collection::vec(one, 0..40), rules(), -200_000_i64..4_000_000).prop_map(
        move |(steps, rules, later)| {
            let mut at = begin;
            let (mut fakes, mut known) = (Vec::<Fake>::new(), Known::default());
            for (n, (step, kind, back, state)) in steps.into_iter().enumerate() {
                at += SignedDuration::from_secs(step);
                let mut fake = match kind {
                    0 => Fake::logical(at, "blog", n),
                    1 => Fake::logical(at, "shop", n),
                    2 => Fake::logical(at, "shop", n).with("selection", true),
                    _ => Fake::physical(at, n as u64, n as u64, n),
                };
                // An increment of one of the last physical backups.
                let physical: Vec<&Fake> = fakes.iter().filter(|fake| fake.kind == "physical").collect();
                if let Some(parent) = back.and_then(|back| physical.iter().rev().nth(back - 1))
                    && fake.kind == "physical"
                {
                    fake = fake.on(parent);
                }
                let id: BackupId = fake.id().parse().unwrap();
                match state {
                    0 => fake = fake.with("partial", true),
                    1 => drop(known.damaged.insert(id)),
                    2 | 3 => drop(known.verified.insert(id)),
                    4 => drop(known.pinned.insert(id, None)),
                    5 => known.running.push(("20300101T000000Z-physical-zzzz".parse().unwrap(), Some(id))),
                    _ => {}
                }
                fakes.push(fake);
            }
            Case { fakes, rules, known, now: at + SignedDuration::from_secs(later) }
        },
    )
}

fn run(case: &Case, rules: &Rules, fakes: &[Fake]) -> BTreeSet<String> {
    kept(&decide(rules, &summaries(fakes), &case.known, case.now))
}

/// What stays, by definition: written without a look at how it is done.
fn reference(case: &Case) -> BTreeSet<String> {
    let by_id: BTreeMap<String, &Fake> = case.fakes.iter().map(|fake| (fake.id(), fake)).collect();
    let chain = |fake: &Fake| {
        let mut chain = vec![fake.id()];
        while let Some(parent) = chain.last().and_then(|id| by_id[id].parent.clone()) {
            chain.push(parent);
        }
        chain
    };
    let is = |set: &BTreeSet<BackupId>, id: &str| set.iter().any(|other| other.as_str() == id);
    let bad = |fake: &Fake| {
        fake.source.get("partial").is_some() || chain(fake).iter().any(|id| is(&case.known.damaged, id))
    };
    let series = |fake: &Fake| {
        (
            fake.kind,
            fake.source.get("selection").is_some(),
            fake.source.get("database").map(ToString::to_string),
        )
    };
    let mut wanted = BTreeSet::new();
    for fake in &case.fakes {
        let good: Vec<&Fake> = case
            .fakes
            .iter()
            .filter(|other| series(other) == series(fake) && other.at <= case.now && !bad(other))
            .collect();
        let verified = good.iter().rev().find(|other| is(&case.known.verified, &other.id()));
        let stays = if fake.at > case.now {
            true
        } else if bad(fake) {
            good.iter().all(|other| other.at < fake.at)
        } else {
            expected(&case.rules, &good, case.now).contains(&fake.id())
                || verified.is_some_and(|newest| newest.id() == fake.id())
        };
        let pinned = case.known.pinned.keys().any(|id| id.as_str() == fake.id());
        let used = case.known.running.iter().any(|(_, p)| p.as_ref().unwrap().as_str() == fake.id());
        if stays || pinned || used {
            wanted.extend(chain(fake));
        }
    }
    wanted
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn the_rules_are_what_they_mean(case in case()) {
        prop_assert_eq!(run(&case, &case.rules, &case.fakes), reference(&case));
    }

    #[test]
    fn a_chain_stays_whole_and_twice_is_once(case in case()) {
        let stays = run(&case, &case.rules, &case.fakes);
        let left: Vec<Fake> = case.fakes.iter().filter(|fake| stays.contains(&fake.id())).cloned().collect();
        for fake in &left {
            prop_assert!(fake.parent.as_ref().is_none_or(|parent| stays.contains(parent)), "{} lost its parent", fake.id());
        }
        prop_assert_eq!(run(&case, &case.rules, &left), stays);
    }

    #[test]
    fn another_rule_never_removes_more(case in case(), other in rules()) {
        let before = run(&case, &case.rules, &case.fakes);
        let mut both = case.rules.clone();
        let more = |a: Option<usize>, b: Option<usize>| a.max(b);
        both.last = more(both.last, other.last);
        both.hourly = more(both.hourly, other.hourly);
        both.daily = more(both.daily, other.daily);
        both.weekly = more(both.weekly, other.weekly);
        both.monthly = more(both.monthly, other.monthly);
        both.yearly = more(both.yearly, other.yearly);
        both.minimum = more(both.minimum, other.minimum);
        both.within = both.within.or(other.within);
        both.recovery_window = both.recovery_window.or(other.recovery_window);
        let after = run(&case, &both, &case.fakes);
        prop_assert!(before.is_subset(&after), "{:?}", before.difference(&after).collect::<Vec<_>>());
    }
}
