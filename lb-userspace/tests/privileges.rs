//! Privileged: needs root, to have something to drop.
//!
//! What works before privileges are dropped, and fails afterwards. A dropped capability does not come back, so each
//! check happens in a child of its own.

use std::{
    fs, io,
    os::{
        fd::OwnedFd,
        unix::{
            fs::{PermissionsExt, chown},
            net::UnixStream,
        },
    },
    path::Path,
    process::{Command, Stdio},
    ptr,
};

use lb_userspace::{
    net::{Netlink, links, netns::Netns},
    privileges,
};

/// False, with a message, where the test cannot run; a failure where the environment says that it must.
fn privileged() -> bool {
    // SAFETY: geteuid has no preconditions and cannot fail.
    let root = unsafe { libc::geteuid() } == 0;
    let required = std::env::var("SLUICE_REQUIRE_PRIVILEGES").is_ok_and(|value| value == "1");
    assert!(root || !required, "needs root, and SLUICE_REQUIRE_PRIVILEGES=1 forbids skipping it");
    if !root {
        eprintln!("skipped: needs root");
    }
    root
}

/// Runs `check` in a child of one thread, and fails with its complaint.
#[track_caller]
fn in_a_child(check: impl FnOnce() -> Result<(), String>) {
    let (ours, its) = UnixStream::pair().unwrap();
    // SAFETY: the child runs on a copy of this thread alone, whose C library is made usable after fork; it leaves by _exit,
    // so that nothing of the parent's is cleaned up twice.
    let child = unsafe { libc::fork() };
    assert!(child >= 0, "{}", io::Error::last_os_error());
    if child == 0 {
        drop(ours);
        let said = std::panic::catch_unwind(std::panic::AssertUnwindSafe(check))
            .unwrap_or_else(|_| Err("a panic".to_owned()))
            .err()
            .unwrap_or_default();
        let _ = io::Write::write_all(&mut &its, said.as_bytes());
        // SAFETY: ends the child at once.
        unsafe { libc::_exit(0) };
    }
    drop(its);
    let said = io::read_to_string(&ours).unwrap();
    // SAFETY: the child made above, which nobody else waits for.
    unsafe { libc::waitpid(child, ptr::null_mut(), 0) };
    assert!(said.is_empty(), "{said}");
}

fn outcome(result: libc::c_long) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Something that needs a privilege, changes nothing where it works, and the error where it does not.
type Attempt = (&'static str, fn() -> io::Result<()>, i32);

fn enter_own_namespace() -> io::Result<()> {
    Netns::current().and_then(|own| own.enter()).map_err(|error| match error {
        lb_userspace::net::Error::Privilege { .. } => io::Error::from_raw_os_error(libc::EPERM),
        other => io::Error::other(other.to_string()),
    })
}

fn mount() -> io::Result<()> {
    // SAFETY: terminated strings; "/" is changed in nothing but its propagation within a namespace of the child's own.
    outcome(unsafe { libc::mount(ptr::null(), c"/".as_ptr(), ptr::null(), libc::MS_SLAVE, ptr::null()) }.into())
}

fn make_map() -> io::Result<()> {
    // BPF_MAP_CREATE of a hash: type, key, value, entries.
    let attributes = [1u32, 4, 4, 1, 0, 0, 0, 0];
    // SAFETY: the pointer and the length describe `attributes`; a descriptor that comes back ends with the child.
    outcome(unsafe { libc::syscall(libc::SYS_bpf, 0, attributes.as_ptr(), size_of_val(&attributes)) })
}

fn open_packet_socket() -> io::Result<()> {
    // SAFETY: no memory is passed; a descriptor that comes back ends with the child.
    outcome(unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW, 0) }.into())
}

fn change_root() -> io::Result<()> {
    // SAFETY: a terminated string.
    outcome(unsafe { libc::chroot(c"/".as_ptr()) }.into())
}

fn run_a_program() -> io::Result<()> {
    Command::new("/bin/true").status().map(drop)
}

const ATTEMPTS: [Attempt; 6] = [
    ("enter a namespace", enter_own_namespace, libc::EPERM),
    ("mount", mount, libc::EPERM),
    ("make a map", make_map, libc::EPERM),
    ("open a packet socket", open_packet_socket, libc::EPERM),
    ("change the root", change_root, libc::EPERM),
    ("run a program", run_a_program, libc::EPERM),
];

#[test]
fn what_was_dropped_fails_and_what_was_kept_works() {
    if !privileged() {
        return;
    }
    in_a_child(|| {
        // SAFETY: no memory is passed; only this child is moved.
        outcome(unsafe { libc::unshare(libc::CLONE_NEWNS) }.into()).map_err(|error| error.to_string())?;
        for (what, attempt, _) in ATTEMPTS {
            attempt().map_err(|error| format!("{what} did not work before: {error}"))?;
        }
        privileges::begin().map_err(|error| error.to_string())?;
        privileges::relinquish().map_err(|error| error.to_string())?;
        for (what, attempt, errno) in ATTEMPTS {
            match attempt() {
                Err(error) if error.raw_os_error() == Some(errno) => {}
                other => return Err(format!("{what} afterwards: {other:?}")),
            }
        }
        let links = Netlink::open().and_then(|mut netlink| links::snapshot(&mut netlink));
        links.map_err(|error| format!("links afterwards: {error}"))?;
        std::thread::spawn(|| {}).join().map_err(|_| "no threads afterwards".to_owned())
    });
}

#[test]
fn a_namespace_of_users_gives_nothing_back() {
    if !privileged() {
        return;
    }
    in_a_child(|| {
        privileges::relinquish().map_err(|error| error.to_string())?;
        for flags in [libc::CLONE_NEWUSER, libc::CLONE_NEWNET] {
            // SAFETY: a child that ends at once, on a stack of its own copy.
            let made = unsafe { libc::syscall(libc::SYS_clone, flags | libc::SIGCHLD, 0, 0, 0, 0) };
            if made == 0 {
                // SAFETY: ends the child at once.
                unsafe { libc::_exit(0) };
            }
            if outcome(made).is_ok() {
                return Err(format!("clone with {flags:x} worked"));
            }
        }
        // SAFETY: the kernel is not to look at the structure, which is none.
        match outcome(unsafe { libc::syscall(libc::SYS_clone3, ptr::null::<u8>(), 0) }) {
            Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => Ok(()),
            other => Err(format!("clone3: {other:?}")),
        }
    });
}

#[test]
fn a_thread_that_was_made_before_is_not_overlooked() {
    if !privileged() {
        return;
    }
    in_a_child(|| {
        let (_awake, asleep) = std::sync::mpsc::channel::<()>();
        std::thread::spawn(move || asleep.recv());
        match privileges::relinquish() {
            Err(error) if error.to_string().contains("still has more privileges than the agent keeps") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
}

#[test]
fn what_root_may_not_read_is_unreadable_from_the_start() {
    if !privileged() {
        return;
    }
    let file = std::env::temp_dir().join(format!("sluice-unreadable-{}", std::process::id()));
    fs::write(&file, "x").unwrap();
    chown(&file, Some(1), Some(1)).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    let read = |file: &Path| fs::read(file).map_err(|error| error.kind());
    assert!(read(&file).is_ok(), "root may everything by CAP_DAC_OVERRIDE");
    in_a_child(|| {
        privileges::begin().map_err(|error| error.to_string())?;
        match read(&file) {
            Err(io::ErrorKind::PermissionDenied) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    fs::remove_file(&file).unwrap();
}

fn helper() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sluice"));
    command.arg(privileges::HELPER_COMMAND).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

#[test]
fn a_helper_that_is_called_by_hand_says_who_calls_it() {
    let output = helper().stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("the agent starts its helper itself"), "{said}");
    let help = Command::new(env!("CARGO_BIN_EXE_sluice")).arg("--help").output().unwrap();
    assert!(!String::from_utf8_lossy(&help.stdout).contains(privileges::HELPER_COMMAND), "it is no command for people");
}

#[test]
fn a_helper_that_hears_nonsense_ends_and_one_whose_agent_is_gone_too() {
    if !privileged() {
        return;
    }
    let too_long = u32::MAX.to_le_bytes();
    let nonsense = [4, 0, 0, 0, 0xff, 0xff, 0xff, 0xff];
    for (bytes, well, said) in
        [(&too_long[..], false, "at most 262144"), (&nonsense, false, ""), (&nonsense[..3], false, ""), (&[], true, "")]
    {
        let (mut ours, its) = UnixStream::pair().unwrap();
        let child = helper().stdin(Stdio::from(OwnedFd::from(its))).spawn().unwrap();
        io::Write::write_all(&mut ours, bytes).unwrap();
        ours.shutdown(std::net::Shutdown::Write).unwrap();
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() == well && text.contains(said), "{bytes:?}: {}: {text}", output.status);
    }
}
