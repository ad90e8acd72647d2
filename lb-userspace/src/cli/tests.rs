use std::cell::RefCell;

use clap::{CommandFactory, error::ErrorKind};

use super::*;

fn parse(line: &str) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(line.split_whitespace())
}

#[test]
fn the_definitions_are_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn the_agent_gets_its_file() {
    let cli = parse("sluice agent --config a.yaml --log-format json --log-level info,lb_userspace=debug").unwrap();
    let Command::Agent(args) = &cli.command else { panic!("{cli:?}") };
    assert_eq!((args.log_format, args.log_level.as_str()), (LogFormat::Json, "info,lb_userspace=debug"));
    let started = RefCell::new(None);
    let agent = |config: &Path| {
        *started.borrow_mut() = Some(config.to_owned());
        Ok(())
    };
    let status = run(cli, &Actions { agent: &agent, detach: &|_, _, _| panic!("not asked for") });
    assert_eq!(status, ExitCode::SUCCESS);
    assert_eq!(started.borrow().as_deref(), Some(Path::new("a.yaml")));
}

#[test]
fn detach_works_where_agents_do_by_default() {
    let detached = RefCell::new(None);
    let detach = |pins: &Path, run: &Path, _: &mut dyn FnMut(&str)| {
        *detached.borrow_mut() = Some((pins.to_owned(), run.to_owned()));
        Ok(())
    };
    let actions = Actions { agent: &|_| panic!("not asked for"), detach: &detach };
    assert_eq!(run(parse("sluice detach").unwrap(), &actions), ExitCode::SUCCESS);
    assert_eq!(detached.into_inner(), Some(("/sys/fs/bpf/sluice".into(), "/run/sluice".into())));
}

#[test]
fn wrong_usage_is_refused() {
    let kind = |line| parse(line).unwrap_err().kind();
    assert_eq!(kind("sluice agent"), ErrorKind::MissingRequiredArgument);
    assert_eq!(kind("sluice agent --config a --log-level =x=y"), ErrorKind::ValueValidation);
    assert_eq!(kind("sluice agent --config a --log-level="), ErrorKind::ValueValidation);
    assert_eq!(kind("sluice status --socket a --config b"), ErrorKind::ArgumentConflict);
    assert_eq!(kind("sluice status -o xml"), ErrorKind::InvalidValue);
    assert_eq!(kind("sluice check"), ErrorKind::MissingRequiredArgument);
    assert_eq!(kind("sluice"), ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand);
}

#[test]
fn a_valid_file_is_summed_up() {
    let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/samples/standalone.yaml");
    let text = check(&sample).unwrap();
    assert!(
        text.ends_with(": valid: 6 services on 1 uplink, 10 backends in all, 3840 of 4194304 Maglev slots\n"),
        "{text}"
    );
}

#[test]
fn failures_begin_with_what_is_wrong() {
    let refused = config::parse("a.yaml", "x: 1\n").unwrap_err().into();
    assert!(complaint(&refused).starts_with("a.yaml:1:1: unknown key `x`"));
    let missing = status::fetch(Path::new("/nonexistent/status.sock")).unwrap_err().into();
    assert!(complaint(&missing).starts_with("sluice: no agent is running: /nonexistent/status.sock"));
    let other = anyhow::anyhow!("no bpffs").context("cannot start");
    assert_eq!(complaint(&other), "sluice: cannot start: no bpffs");
}
