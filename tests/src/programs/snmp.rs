//! net-snmp: v2c traps and v3 informs from the element, received by `snmptrapd` in a pod.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    path::Path,
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use super::{PATIENCE, bracketed, make_directory};
use crate::{
    lab::{Namespace, Pod, Transport, require_program},
    process::Process,
};

/// Port for traps and informs (RFC 3413; IANA `snmptrap`).
pub const PORT: u16 = 162;

const USER: &str = "operator";
const AUTH_PASSWORD: &str = "authentication";
const PRIV_PASSWORD: &str = "encryption-key";
/// The receivers' engine id. All of them have the same, or a sender would need to know which pod it talks to.
const ENGINE_ID: &str = "0x80001f88045672656365697665";
/// Marks the log lines that are received messages: `TRAP|source|variables`.
const MARK: &str = "RECEIVED|";

/// What a pod received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Received {
    /// The address that the message came from, as the pod saw it.
    pub source: SocketAddr,
    /// The text that the sender put in.
    pub text: String,
}

/// `snmptrapd` in a pod.
#[derive(Debug)]
pub struct Receiver {
    process: Process,
}

impl Receiver {
    /// Starts it and waits until its port is open.
    pub fn start(pod: &Pod, directory: &Path) -> Result<Self> {
        require_program("snmptrapd", "snmptrapd")?;
        let directory = directory.join(format!("snmptrapd-{}", pod.name()));
        make_directory(&directory)?;
        let configuration = directory.join("snmptrapd.conf");
        fs::write(
            &configuration,
            format!(
                "exactEngineID {ENGINE_ID}\n\
                 createUser {USER} SHA {AUTH_PASSWORD} AES {PRIV_PASSWORD}\n\
                 authUser log {USER} priv\n\
                 authCommunity log public\n\
                 format1 {MARK}%b|%v\\n\n\
                 format2 {MARK}%b|%v\\n\n"
            ),
        )?;
        let mut process = Process::start(
            &format!("snmptrapd in {}", pod.name()),
            pod.namespace
                .command("snmptrapd")
                .args(["-f", "-n", "-Lo", "-m", "", "-C", "-c"])
                .arg(&configuration)
                .args([format!("udp:{PORT}"), format!("udp6:{PORT}")])
                .env("SNMP_PERSISTENT_DIR", &directory),
        )?;
        if let Err(error) = pod.namespace.wait_listening(Transport::Udp, PORT, PATIENCE) {
            process.check_running()?;
            return Err(error.context(process.log_tail()));
        }
        Ok(Self { process })
    }

    /// Everything received so far.
    #[must_use]
    pub fn received(&self) -> Vec<Received> {
        parse(&self.process.lines())
    }

    /// Last lines of the log, for failures.
    #[must_use]
    pub fn log_tail(&self) -> String {
        self.process.log_tail()
    }

    /// Waits for a message that carries `text`.
    pub fn wait_for(&self, text: &str) -> Result<Received> {
        self.process.wait_log(&format!("SNMP message {text:?}"), 0, PATIENCE, |lines| {
            parse(lines).into_iter().find(|received| received.text == text)
        })
    }
}

/// What is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// SNMPv2c trap: one datagram, no answer.
    TrapV2c,
    /// SNMPv3 inform with authentication and privacy: discovery, then a request that the receiver acknowledges.
    InformV3,
    /// SNMPv2c inform of some 8 KiB, whose acknowledgement repeats all of it.
    LargeInformV2c,
}

/// Variables of a large inform beside its text, and bytes of each.
const LARGE: (usize, usize) = (8, 1000);

/// Sends one message from `from`, with `text` in it. Returns when `snmptrap` ends; for an inform that means that it
/// was acknowledged.
pub fn send(from: &Namespace, target: IpAddr, kind: Kind, text: &str, directory: &Path) -> Result<()> {
    require_program("snmptrap", "snmp")?;
    let scheme = if target.is_ipv6() { "udp6" } else { "udp" };
    let target = format!("{scheme}:{}:{PORT}", bracketed(target));
    let mut command: Command = from.command("snmptrap");
    // Nothing of the machine's own configuration; `-Ci` makes it an inform.
    command.env("SNMPCONFPATH", directory).env("SNMP_PERSISTENT_DIR", directory).args(["-m", ""]);
    match kind {
        Kind::TrapV2c => command.args(["-v", "2c", "-c", "public"]),
        Kind::LargeInformV2c => command.args(["-v", "2c", "-Ci", "-c", "public", "-r", "2", "-t", "2"]),
        Kind::InformV3 => command.args(["-v", "3", "-Ci", "-u", USER, "-l", "authPriv"]).args([
            "-a",
            "SHA",
            "-A",
            AUTH_PASSWORD,
            "-x",
            "AES",
            "-X",
            PRIV_PASSWORD,
            "-r",
            "2",
            "-t",
            "2",
        ]),
    };
    // sysUpTime by the sender's clock, snmpTrapOID = linkDown, sysName = the text.
    command.args([&target, "", "1.3.6.1.6.3.1.1.5.3"]);
    if kind == Kind::LargeInformV2c {
        for variable in 1..=LARGE.0 {
            command.args([&format!("1.3.6.1.2.1.1.6.{variable}"), "s", &"x".repeat(LARGE.1)]);
        }
    }
    command.args(["1.3.6.1.2.1.1.5.0", "s", text]);
    let output = command.output().context("cannot start snmptrap")?;
    if !output.status.success() {
        bail!("snmptrap ({kind:?}) to {target} failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// Sends `count` messages, each from a source port of its own, and gives for each the index of the receiver that got
/// it and what it got. Fails when one is missing.
pub fn exchange(
    from: &Namespace,
    target: IpAddr,
    kind: Kind,
    count: usize,
    receivers: &[Receiver],
    directory: &Path,
    mut seen: impl FnMut(usize, &Received),
) -> Result<Vec<usize>> {
    let mut owners = Vec::with_capacity(count);
    for number in 0..count {
        let text = format!("{kind:?}-{target}-{number}");
        send(from, target, kind, &text, directory)?;
        let (owner, received) = wait_any(receivers, &text)?;
        seen(owner, &received);
        owners.push(owner);
    }
    Ok(owners)
}

fn wait_any(receivers: &[Receiver], text: &str) -> Result<(usize, Received)> {
    let arrived = crate::lab::wait_until(&format!("SNMP message {text:?} in any pod"), PATIENCE, || {
        Ok(receivers.iter().enumerate().find_map(|(index, receiver)| {
            let found = receiver.received().into_iter().find(|received| received.text == text)?;
            Some((index, found))
        }))
    });
    arrived.with_context(|| receivers.iter().map(Receiver::log_tail).collect::<Vec<_>>().join("\n"))
}

fn parse(lines: &[String]) -> Vec<Received> {
    lines.iter().filter_map(|line| parse_line(line)).collect()
}

/// `RECEIVED|UDP: [192.0.2.10]:43210->[10.244.0.11]:162|.1.3… = STRING: "text"`, the address of IPv6 written as
/// `UDP/IPv6: [2001:db8::1]:43210->[…]:162`.
fn parse_line(line: &str) -> Option<Received> {
    let (transport, variables) = line.strip_prefix(MARK)?.split_once('|')?;
    let (_, source) = transport.split_once(": ")?;
    let source = source.split("->").next()?;
    let (address, port) = source.rsplit_once(':')?;
    let address: IpAddr = address.trim_matches(['[', ']']).parse().ok()?;
    let text = variables.rsplit_once("STRING: ")?.1.trim_matches('"').to_owned();
    Some(Received { source: SocketAddr::new(address, port.parse().ok()?), text })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_either_family_is_read() {
        let line = "RECEIVED|UDP: [192.0.2.10]:40000->[10.244.0.11]:162|.1.3.6.1.2.1.1.5.0 = STRING: \"a b\"";
        let received = parse_line(line).expect("the line is whole");
        assert_eq!((received.source.to_string().as_str(), received.text.as_str()), ("192.0.2.10:40000", "a b"));
        let line = "RECEIVED|UDP/IPv6: [2001:db8:1::10]:40000->[fd00:244::b]:162|x = STRING: \"t\"";
        assert_eq!(parse_line(line).expect("the line is whole").source.to_string(), "[2001:db8:1::10]:40000");
        assert_eq!(parse_line("NET-SNMP version 5.9.3"), None);
    }
}
