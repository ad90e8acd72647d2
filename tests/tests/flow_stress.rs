//! Needs root and SLUICE_LAB_OBJECT for its first test. The flow cache under writers on all CPUs and a sweeper in user
//! space gives no wrong answer; the same cache without the reader's second look does, in the same run.

use std::{
    os::fd::{AsFd as _, AsRawFd as _},
    path::PathBuf,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use aya::{
    Ebpf,
    maps::{PerCpuArray, PerCpuValues},
    programs::Xdp,
    util::nr_cpus,
};
use lb_common::{flow, word::Word};
use lb_tests::{
    kernel::{shared::Shared, stay_on_cpu},
    lab::LAB_OBJECT,
};

#[path = "../../lb-ebpf/src/lab/torture.rs"]
mod torture;
use torture::{BUCKETS, KEYS, Tally, question};

// The negative control.
include!(concat!(env!("OUT_DIR"), "/unchecked.rs"));

/// CPUs that write, and threads of the variant without a kernel.
const WRITERS: usize = 2;
/// Runs of a program, of 64 turns each, in one system call; some ten milliseconds.
const RUNS: u32 = 4_000;
/// Turns of a thread between one look at the time and the next.
const TURNS: u32 = 100_000;
/// Wrong answers that the copy with the defect must give; the other cache is asked as long.
const WRONG: u64 = 50;
/// A run lasts so long at least, and until there are that many wrong answers.
const LEAST: Duration = Duration::from_secs(3);
/// A negative control that shows nothing within this time fails the test.
const MOST: Duration = Duration::from_secs(40);

/// What the sweeper has done and seen.
#[derive(Debug, Default)]
struct Swept {
    seen: u64,
    removed: u64,
    wrong: u64,
}

/// Reads every entry again and again, and removes one of seven, until `stop`.
fn sweep(buckets: &[flow::Bucket], stop: &AtomicBool) -> Swept {
    let mut swept = Swept::default();
    while !stop.load(Ordering::Relaxed) {
        for entry in buckets.iter().flat_map(|bucket| &bucket.entries) {
            let Some((key, backend, _)) = flow::snapshot(entry) else { continue };
            swept.seen += 1;
            swept.wrong += u64::from(right_answer(&key) != Some(backend));
            if swept.seen % 7 == 0 {
                swept.removed += u64::from(flow::remove(entry, &key));
            }
        }
        // Two CPUs have two writers already.
        thread::yield_now();
    }
    swept
}

fn right_answer(key: &flow::Key) -> Option<u32> {
    let is_it = |n: &u64| {
        let question = question(*n);
        flow::Key::udp(question.endpoint, question.client, question.port) == *key
    };
    (0..KEYS).find(is_it).map(|n| question(n).backend)
}

/// At rest no entry is left half written, and each holds what it should.
fn check_at_rest(buckets: &[flow::Bucket]) {
    for entry in buckets.iter().flat_map(|bucket| &bucket.entries) {
        assert_eq!(entry.control.load() >> 48 & 1, 0, "an entry is left being written");
        if let Some((key, backend, _)) = flow::snapshot(entry) {
            assert_eq!(right_answer(&key), Some(backend), "{key:?}");
        }
    }
}

fn judge(checked: &[Tally], control: &[Tally], swept: &Swept) {
    let sum = |tallies: &[Tally], of: fn(&Tally) -> u64| tallies.iter().map(of).sum::<u64>();
    println!("checked {checked:?}\ncontrol {control:?}\n{swept:?}");
    assert!(sum(control, |t| t.wrong) >= WRONG, "the negative control shows nothing: {control:?}");
    assert_eq!(sum(checked, |t| t.wrong), 0, "wrong answers: {checked:?}");
    assert_eq!(swept.wrong, 0, "wrong answers to the sweeper: {swept:?}");
    let busy = checked.iter().filter(|t| t.hits > 1000 && t.misses > 1000 && t.evictions > 1000).count();
    assert!(busy >= WRITERS, "each writer finds, misses and evicts: {checked:?}");
    assert!(swept.seen > 1000 && swept.removed > 100, "the sweeper sees and removes: {swept:?}");
    let (asked, of_control) = (sum(checked, |t| t.hits), sum(control, |t| t.hits));
    assert!(asked > of_control / 2, "the cache was asked as much as its copy: {asked} of {of_control}");
}

/// Whether a run may end.
fn is_enough(begun: Instant, wrong: u64) -> bool {
    begun.elapsed() > MOST || begun.elapsed() > LEAST && wrong >= WRONG
}

fn lab_object() -> Option<PathBuf> {
    // SAFETY: takes nothing, touches nothing.
    let root = unsafe { libc::geteuid() } == 0;
    let path = std::env::var_os(LAB_OBJECT).map(PathBuf::from).filter(|_| root);
    assert!(path.is_some() || std::env::var_os("SLUICE_REQUIRE_PRIVILEGES").is_none(), "root and {LAB_OBJECT}");
    if path.is_none() {
        eprintln!("skipped: needs root and {LAB_OBJECT}");
    }
    path
}

/// `union bpf_attr` for `BPF_PROG_TEST_RUN` (include/uapi/linux/bpf.h). aya's call borrows the program alone.
#[repr(C)]
#[derive(Default)]
struct TestRun {
    program: u32,
    result: u32,
    size_in: u32,
    size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    rest: [u32; 10],
}
const BPF_PROG_TEST_RUN: libc::c_long = 10;

fn run(program: i32) {
    let packet = [0u8; 64];
    let attr = TestRun {
        program: program as u32,
        size_in: packet.len() as u32,
        data_in: packet.as_ptr() as u64,
        repeat: RUNS,
        ..TestRun::default()
    };
    // SAFETY: attributes and packet live across the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_TEST_RUN, &raw const attr, size_of_val(&attr)) };
    let error = std::io::Error::last_os_error();
    assert!(result == 0 || error.kind() == std::io::ErrorKind::Interrupted, "the kernel runs it: {error}");
}

#[derive(Clone, Copy)]
#[repr(transparent)]
struct PodTally(Tally);
// SAFETY: repr(C), plain integers; any bytes are a value.
unsafe impl aya::Pod for PodTally {}

#[test]
fn programs_on_all_cpus_and_a_sweeper_agree_about_every_record() {
    let Some(path) = lab_object() else { return };
    let mut ebpf = Ebpf::load_file(&path).expect("the lab's object loads");
    let fds = ["stress", "stress_unchecked"].map(|name| {
        let program: &mut Xdp = ebpf.program_mut(name).expect("in the object").try_into().expect("an XDP program");
        program.load().expect("the verifier accepts it");
        program.fd().expect("it is loaded").as_fd().as_raw_fd()
    });
    let cpus = nr_cpus().expect("the kernel says how many CPUs");
    let mut tally: PerCpuArray<_, PodTally> =
        ebpf.take_map("tally").expect("in the object").try_into().expect("an array for each CPU");
    for program in 0..2 {
        let seeded =
            |cpu| PodTally(Tally { random: 0x9e37_79b9 + 2 * cpu as u64 + u64::from(program), ..Tally::default() });
        let values = PerCpuValues::try_from((0..cpus).map(seeded).collect::<Vec<_>>()).expect("one for each CPU");
        tally.set(program, values, 0).expect("within the map");
    }
    let read = |program: u32| -> Vec<Tally> {
        tally.get(&program, 0).expect("within the map").iter().map(|tally| tally.0).collect()
    };
    let buckets = Shared::<flow::Bucket>::of(&ebpf, "stress_flows", BUCKETS);
    let (stop, begun) = (AtomicBool::new(false), Instant::now());
    let swept = thread::scope(|scope| {
        for cpu in 0..WRITERS {
            let stop = &stop;
            scope.spawn(move || {
                stay_on_cpu(cpu);
                // Both take turns, so that what one meets the other does.
                while !stop.load(Ordering::Relaxed) {
                    fds.iter().for_each(|program| run(*program));
                }
            });
        }
        let (shared, stop) = (&buckets[..], &stop);
        let sweeper = scope.spawn(move || sweep(shared, stop));
        while !is_enough(begun, read(1).iter().map(|tally| tally.wrong).sum()) {
            thread::sleep(Duration::from_millis(50));
        }
        stop.store(true, Ordering::Relaxed);
        sweeper.join().expect("the sweeper ends")
    });
    judge(&read(0), &read(1), &swept);
    check_at_rest(&buckets);
}

macro_rules! torture {
    ($cache:path, $tally:expr, $buckets:expr) => {{
        use $cache as cache;
        let tally: &mut Tally = $tally;
        let random = tally.next();
        let question = question(random >> 20);
        let key = cache::Key::udp(question.endpoint, question.client, question.port);
        let bucket: &cache::Bucket = &$buckets[(key.hash(0) >> 61) as usize];
        let now = (random >> 32) as u32 & 3;
        match cache::find(bucket, &key, now) {
            Some(backend) => {
                tally.hits += 1;
                tally.wrong += u64::from(backend != question.backend);
            }
            None => {
                tally.misses += 1;
                tally.evictions += u64::from(bucket.entries.iter().all(|entry| entry.control.load() << 16 != 0));
                cache::record(bucket, &key, question.backend, now);
            }
        }
    }};
}

#[test]
fn threads_and_a_sweeper_agree_about_every_record() {
    let word = || Word::new(0);
    let entry = |_| flow::Entry { control: word(), client: [word(), word()], value: word() };
    let buckets: Vec<flow::Bucket> =
        (0..BUCKETS).map(|_| flow::Bucket { entries: std::array::from_fn(entry) }).collect();
    // SAFETY: the same layout, by the same source.
    let copies: &[unchecked::Bucket] = unsafe { std::slice::from_raw_parts(buckets.as_ptr().cast(), buckets.len()) };
    let (stop, wrong, begun) = (AtomicBool::new(false), AtomicU64::new(0), Instant::now());
    let (tallies, swept) = thread::scope(|scope| {
        let (stop, wrong, buckets) = (&stop, &wrong, &buckets[..]);
        let write = |number: usize| {
            let seeded = |program| Tally { random: 0x9e37_79b9 + 2 * number as u64 + program, ..Tally::default() };
            let (mut checked, mut control) = (seeded(0), seeded(1));
            while !stop.load(Ordering::Relaxed) {
                (0..TURNS).for_each(|_| torture!(flow, &mut checked, buckets));
                let before = control.wrong;
                (0..TURNS).for_each(|_| torture!(unchecked, &mut control, copies));
                wrong.fetch_add(control.wrong - before, Ordering::Relaxed);
            }
            (checked, control)
        };
        let writers: Vec<_> = (0..WRITERS).map(|number| scope.spawn(move || write(number))).collect();
        let sweeper = scope.spawn(|| sweep(buckets, stop));
        while !is_enough(begun, wrong.load(Ordering::Relaxed)) {
            thread::sleep(Duration::from_millis(50));
        }
        stop.store(true, Ordering::Relaxed);
        let tallies: Vec<_> = writers.into_iter().map(|writer| writer.join().expect("a writer ends")).collect();
        (tallies, sweeper.join().expect("the sweeper ends"))
    });
    let (checked, control): (Vec<_>, Vec<_>) = tallies.into_iter().unzip();
    judge(&checked, &control, &swept);
    check_at_rest(&buckets);
}
