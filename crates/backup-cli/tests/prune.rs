//! Prunes by the command: shown, carried out, killed at any moment, and beside backups that build on what goes.

#![allow(clippy::unwrap_used, missing_docs)]

mod cli;
#[path = "../../../tests/support/mod.rs"]
mod support;

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use cli::{Pgark, said};
use pgark::ErrorKind;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use support::dice::Dice;
use support::{server, sql};

fn ids(list: &Value, name: &str) -> BTreeSet<String> {
    let id = |backup: &Value| backup["id"].as_str().or(backup.as_str()).unwrap().to_owned();
    list[name].as_array().unwrap().iter().map(id).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_is_shown_and_carried_out() {
    let source = server();
    sql(&source, "postgres", "CREATE TABLE t AS SELECT generate_series(1, 100) AS i").await;
    let pgark = Pgark::new();
    let (repo, db) = (pgark.place("repo"), source.url("postgres"));
    let backup = |args: &[&str]| {
        let made = pgark.json(&[&["backup", "--repo", &repo, "--db", &db], args].concat());
        made["backup"]["id"].as_str().unwrap().to_owned()
    };
    let prune = |args: &[&str]| pgark.json(&[&["prune", "--repo", &repo], args].concat());
    let pinned = backup(&["--label", "before 2.0", "--pin-until", "90d"]);
    let old: Vec<String> = (0..3).map(|_| backup(&[])).collect();
    let new = backup(&[]);

    pgark.fails(&["prune", "--repo", &repo], ErrorKind::Usage).says("no rule").says("--keep-daily");
    let minimum = ["prune", "--repo", &repo, "--minimum", "2"];
    pgark.fails(&minimum, ErrorKind::Usage).says("no rule");
    for wrong in [["--keep-last", "0"], ["--keep-within", "6m"], ["--time-zone", "Mars/Olympus"]] {
        let all = [&["prune", "--repo", &repo, "--keep-daily", "1"], &wrong[..]].concat();
        assert_eq!(pgark.run(&all).status.code(), Some(2), "{wrong:?}");
    }
    let plan = prune(&["--keep-last", "1"]);
    assert_eq!((&plan["applied"], plan["plan"]["remove"]["backups"].as_u64()), (&Value::Null, Some(3)));
    let why = |n: usize| plan["plan"]["backups"][n]["reasons"].to_string();
    assert!(
        why(0).contains("pinned until") && why(1).contains("no rule") && why(4).contains("last 1"),
        "{plan}"
    );
    let text = pgark.text(&["prune", "--repo", &repo, "--keep-last", "1"]);
    assert!(text.contains("REMOVE") && text.contains("add --apply") && text.contains(&old[0]), "{text}");
    assert_eq!(ids(&pgark.json(&["list", "--repo", &repo]), "backups").len(), 5, "nothing has changed");

    let apply = ["--keep-last", "1", "--apply", "--wait", "0"];
    let refused = pgark.fails(&[&["prune", "--repo", &repo], &apply[..]].concat(), ErrorKind::Usage);
    refused.says("3 of 5").says("--yes");
    // The second of two rules in a file, and the third by its own.
    let config = pgark.write(
        "keep.toml",
        "[repository]\nurl = \"repo\"\n[retention]\nkeep_last = 2\nwait = 0\nmax_share = 40\n\
         [cluster.main]\ndb = \"\"\n[cluster.other]\ndb = \"\"\n[cluster.other.retention]\nkeep_yearly = 1\n",
    );
    let done = pgark.json(&["--config", &config, "--cluster", "main", "prune", "--apply"]);
    let removed: Vec<&str> =
        done["applied"]["removed"].as_array().unwrap().iter().map(|id| id.as_str().unwrap()).collect();
    assert_eq!(removed.len(), 2, "{done}");
    assert!(removed.contains(&old[0].as_str()) && removed.contains(&old[1].as_str()), "{done}");
    let done = prune(&[&apply[..], &["--yes"]].concat());
    assert_eq!(done["applied"]["removed"], serde_json::json!([old[2]]));
    let list = pgark.json(&["list", "--repo", &repo]);
    assert_eq!(ids(&list, "backups"), [pinned.clone(), new.clone()].into());
    assert_eq!(ids(&list, "pinned"), [pinned.clone()].into());
    pgark.json(&["verify", "--repo", &repo, "--all"]);

    let answer = pgark.json(&["unpin", "--repo", &repo, &pinned]);
    assert_eq!((&answer["pinned"], &answer["id"]), (&false.into(), &pinned.clone().into()));
    assert!(pgark.text(&["pin", "--repo", &repo, &pinned, "--until", "2099-12-31"]).contains("2100-01-01"));
    pgark
        .fails(&["pin", "--repo", &repo, &pinned, "--until", "2001-01-01"], ErrorKind::Usage)
        .says("is over");
    pgark.fails(&["pin", "--repo", &repo, "2030"], ErrorKind::BackupNotFound);
    pgark.json(&["unpin", "--repo", &repo, &pinned]);
    prune(&[&apply[..], &["--yes"]].concat());
    assert_eq!(ids(&pgark.json(&["list", "--repo", &repo]), "backups"), [new].into());
    let audit = pgark.text(&["audit", "list", "--repo", &repo]);
    assert!(audit.contains(" prune ") && audit.contains(" unpin ") && audit.contains(" pin "), "{audit}");
}

fn copy(from: &str, to: &str) {
    let copied = Command::new("cp").args(["-a", from, to]).status().unwrap();
    assert!(copied.success());
}

/// What is left of backups and of unfinished files.
fn leftovers(pgark: &Pgark, repo: &str, stays: &BTreeSet<String>) -> Vec<String> {
    let of_one_that_stays = |file: &String| stays.iter().any(|id| file.contains(id.as_str()));
    let backups = pgark.files(&format!("{repo}/clusters/main/backups"));
    backups.into_iter().filter(|file| !of_one_that_stays(file)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_prune_leaves_whole_backups_and_the_next_one_ends_it() {
    let mut dice = Dice::new();
    let source = server();
    sql(&source, "postgres", "CREATE TABLE t AS SELECT generate_series(1, 1000) AS i").await;
    let pgark = Pgark::new();
    let (repo, db) = (pgark.place("repo"), source.url("postgres"));
    let backup = |args: &[&str]| {
        pgark.json(&[&["backup", "--repo", &repo, "--db", &db], args].concat());
    };
    backup(&["--physical"]);
    backup(&["--incremental"]);
    for _ in 0..4 {
        backup(&[]);
    }
    backup(&["--physical"]);
    backup(&["--incremental"]);
    let prune = |repo: &str| {
        ["prune", "--repo", repo, "--keep-last", "1", "--apply", "--yes", "--wait", "0"].map(str::to_owned)
    };
    let command = |repo: &str| {
        let args = prune(repo);
        pgark.command(&args.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let whole = pgark.place("whole");
    copy(&repo, &whole);
    let begun = Instant::now();
    let output = command(&whole).output().unwrap();
    let longest = begun.elapsed();
    assert!(output.status.success(), "{}", said(&output));
    let expected = ids(&pgark.json(&["list", "--repo", &whole]), "backups");
    assert_eq!(expected.len(), 3, "a logical backup, and an increment with its parent");
    assert_eq!(leftovers(&pgark, "whole", &expected), [""; 0]);

    let (mut interrupted, mut early) = (0, 0);
    for round in 0..16 {
        let name = format!("killed-{round}");
        let place = pgark.place(&name);
        copy(&repo, &place);
        let mut child = command(&place).spawn().unwrap();
        if round % 2 == 0 {
            std::thread::sleep(dice.time(longest));
        } else {
            // Between the first mark and the end.
            let marks = pgark.path(&format!("{name}/clusters/main/marks"));
            let is_marked = || {
                let mut marks = std::fs::read_dir(&marks).into_iter().flatten().flatten();
                marks.any(|mark| mark.file_name().to_string_lossy().ends_with(".remove.json"))
            };
            while !is_marked() && child.try_wait().unwrap().is_none() {
                std::thread::sleep(Duration::from_micros(200));
            }
            std::thread::sleep(dice.time(longest / 8));
        }
        let _ = kill_process(Pid::from_child(&child), Signal::KILL);
        let killed = !child.wait().unwrap().success();
        let list = pgark.json(&["list", "--repo", &place]);
        let (there, going) = (ids(&list, "backups"), ids(&list, "being_removed"));
        assert!(expected.is_subset(&there) && expected.is_disjoint(&going), "{list}");
        interrupted += u32::from(killed && !going.is_empty());
        early += u32::from(killed && there.len() == 8 && going.is_empty());
        // Whatever is not about to go is whole: each is read.
        for id in there.difference(&going) {
            pgark.json(&["verify", id, "--repo", &place, "--stored"]);
        }
        let output = command(&place).output().unwrap();
        assert!(output.status.success(), "{}", said(&output));
        let list = pgark.json(&["list", "--repo", &place]);
        assert_eq!(
            (ids(&list, "backups"), ids(&list, "being_removed").len()),
            (expected.clone(), 0),
            "{list}"
        );
        assert_eq!(ids(&list, "unfinished").len(), 0, "{list}");
        assert_eq!(leftovers(&pgark, &name, &expected), [""; 0]);
        assert_eq!(pgark.json(&["verify", "--repo", &place, "--all"])["good"], true);
        std::fs::remove_dir_all(Path::new(&place)).unwrap();
    }
    println!(
        "{interrupted} of 16 were killed between marks and end, {early} before; a whole one took {longest:?}"
    );
    assert!(interrupted >= 2, "{interrupted} were interrupted");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_increment_is_made_while_its_parent_is_pruned() {
    let mut dice = Dice::new();
    let source = server();
    let pgark = Pgark::new();
    let (repo, db) = (pgark.place("repo"), source.url("postgres"));
    let backup = ["backup", "--repo", &repo, "--db", &db];
    let full = || {
        let made = pgark.json(&[&backup[..], &["--physical"]].concat());
        made["backup"]["id"].as_str().unwrap().to_owned()
    };
    let (mut saved, mut refused, mut alone) = (0, 0, 0);
    let mut longest = Duration::from_secs(2);
    for round in 0..7 {
        let parent = full();
        full();
        let increment =
            ["--json", "backup", "--repo", &repo, "--db", &db, "--incremental", "--from", &parent];
        let wait = if round % 2 == 0 { "0" } else { "1" };
        let prune =
            ["--json", "prune", "--repo", &repo, "--keep-last", "1", "--apply", "--yes", "--wait", wait];
        let begun = Instant::now();
        // One or the other begins, and the second one at any moment of the first.
        let (first, second) =
            if round % 3 == 0 { (&prune[..], &increment[..]) } else { (&increment[..], &prune[..]) };
        let first = pgark.command(first).spawn().unwrap();
        // A prune alone takes a tenth of a second.
        let latest = if round % 3 == 0 { Duration::from_millis(150) } else { longest };
        std::thread::sleep(dice.time(latest));
        let second = pgark.command(second).output().unwrap();
        let first = first.wait_with_output().unwrap();
        let (made, pruned) = if round % 3 == 0 { (second, first) } else { (first, second) };
        longest = begun.elapsed().min(Duration::from_secs(3));
        assert!(pruned.status.success(), "{}", said(&pruned));
        let list = pgark.json(&["list", "--repo", &repo]);
        let there = ids(&list, "backups");
        if made.status.success() {
            let made: Value = serde_json::from_slice(&made.stdout).unwrap();
            match made["backup"]["parent"].as_str() {
                Some(on) => {
                    assert!(there.contains(on), "{made} lost its parent: {list}");
                    saved += 1;
                }
                None => alone += 1,
            }
        } else {
            assert_eq!(made.status.code(), Some(ErrorKind::BackupNotFound.code().into()), "{}", said(&made));
            let gone = format!("there is no backup {parent}");
            let told = said(&made);
            assert!(told.contains("was removed while") || told.contains(&gone), "{told}");
            refused += 1;
        }
        assert_eq!((ids(&list, "unfinished").len(), ids(&list, "being_removed").len()), (0, 0), "{list}");
        assert_eq!(leftovers(&pgark, "repo", &there), [""; 0]);
        assert_eq!(pgark.json(&["verify", "--repo", &repo, "--all"])["good"], true);
    }
    println!(
        "7 rounds: {saved} parents were saved, {refused} increments refused, {alone} made as full backups"
    );
}
