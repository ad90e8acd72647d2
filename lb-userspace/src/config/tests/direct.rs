//! Rung `direct`: what follows from it, and what it rules out.

use super::*;

fn direct(vip: &str, assign: bool) -> RungChoice {
    RungChoice::Direct { vip: vip.parse().unwrap(), assign }
}

#[test]
fn a_direct_service_names_its_vip_and_who_puts_it_on_the_pods() {
    let snapshot = taken(&with_services(
        "  - { name: a, vip: 198.51.100.1, protocol: TCP, ports: [179, 180], rung: direct, backends: [{ address: 10.0.0.1 }] }
  - { name: b, vip: 2001:db8:1::1, protocol: UDP, ports: [3784], rung: direct, assignVip: true, \
         backends: [{ address: '2001:db8:2::1', port: 3784 }] }
  - { name: c, vip: 198.51.100.2, protocol: TCP, ports: [179], assignVip: false, backends: [{ address: 10.0.0.1 }] }
",
    ));
    let [bgp, other, bfd, plain] = &snapshot.services[..] else { panic!("{:?}", snapshot.services) };
    assert_eq!((bgp.rung, bgp.backends[0].port), (direct("198.51.100.1", false), 179));
    assert_eq!((other.rung, other.backends[0].port), (direct("198.51.100.1", false), 180));
    assert_eq!((bfd.rung, bfd.replies), (direct("2001:db8:1::1", true), ReplyMode::Static));
    assert_eq!(plain.rung, RungChoice::Auto);
}

#[test]
fn a_direct_service_rewrites_no_port() {
    check_service_refused(
        "  - name: a
    vip: 198.51.100.1
    protocol: TCP
    ports: [179, 180]
    rung: direct
    backends: [{ address: 10.0.0.1, port: ▶179 }, { address: 10.0.0.2 }, { address: 10.0.0.3, port: ▶1179 }]
",
        &[
            "backend port 179 is not the service's 180, see line 7: rung `direct` rewrites nothing; remove the key `port`, \
             and let the pod listen on the service's port",
            "backend port 1179 is not the service's 179, see line 7: rung `direct` rewrites nothing; remove the key \
             `port`, and let the pod listen on the service's port",
        ],
    );
}

#[test]
fn what_only_makes_sense_with_the_rung_is_refused_without_and_the_other_way_round() {
    check_service_refused(
        "  - { name: a, vip: 198.51.100.1, protocol: UDP, ports: [1], rung: direct, replies: ▶recorded }
  - { name: b, vip: 198.51.100.1, protocol: UDP, ports: [2], rung: peer, assignVip: ▶true }
  - { name: c, vip: 198.51.100.1, protocol: UDP, ports: [3], assignVip: ▶true }
  - { name: d, vip: 198.51.100.1, protocol: UDP, ports: [4], rung: direct, assignVip: ▶yes }
  - { name: e, vip: 198.51.100.1, protocol: UDP, ports: [5], rung: ▶diret, assignVip: true }
",
        &[
            "replies `recorded` is for services whose replies are rewritten, and rung `direct` rewrites nothing; write \
             replies: static, or replies: none to leave what the pods send to the node's stack",
            "assignVip is for rung `direct`: by the other rungs pods know nothing of the VIP; write rung: direct beside \
             it, or remove the key",
            "assignVip is for rung `direct`: by the other rungs pods know nothing of the VIP; write rung: direct beside \
             it, or remove the key",
            "assignVip `yes` is not a truth value; write true or false",
            "rung `diret` is unknown; did you mean `direct`? it can be auto, redirect, peer, stack, direct",
        ],
    );
}
