//! TCP in user space, in a pod: smoltcp on a packet socket. The pod's own kernel does not hear what comes for its port.

use std::{
    collections::{HashMap, hash_map::Entry},
    io::{self, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    os::fd::AsRawFd as _,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
};

use anyhow::{Context as _, Result, ensure};
use lb_tests::lab::Pod;
use smoltcp::{
    iface::{Config, Interface, SocketHandle, SocketSet},
    phy::{Medium, RawSocket, wait},
    socket::tcp,
    time::{Duration, Instant},
    wire::{EthernetAddress, IpCidr},
};

use super::nft;

/// Connections at the same time, and the same again in other states.
const SOCKETS: usize = 96;
/// Longest wait for a packet: what the other end of a relay says is looked for in between.
const WAIT: Duration = Duration::from_millis(2);

/// Takes the connections to a port of a pod on a bridge, whose gateway smoltcp wants in the pod's subnet, and relays each to a listener that the pod's kernel has; ends on drop.
pub struct UserSpace {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl UserSpace {
    pub fn start(pod: &Pod, port: u16, to: u16) -> Result<Self> {
        nft(
            &pod.namespace,
            &format!(
                "table inet deaf {{\n chain in {{\n type filter hook prerouting priority raw;\n tcp dport {port} drop;\n \
                 }}\n}}\n"
            ),
        )?;
        let mac = mac(pod)?;
        let addresses = [IpCidr::new(pod.addresses.v4.into(), 24), IpCidr::new(pod.addresses.v6.into(), 64)];
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = pod.namespace.spawn(move || serve(mac, addresses, port, to, &stopped));
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for UserSpace {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.thread.take().map(JoinHandle::join);
        if !std::thread::panicking() {
            ended.expect("it runs once").expect("it does not panic").expect("TCP in user space works");
        }
    }
}

fn mac(pod: &Pod) -> Result<EthernetAddress> {
    let output = pod.namespace.command("ip").args(["-j", "link", "show", "eth0"]).output()?;
    let shown: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let text = shown[0]["address"].as_str().context("eth0 has a MAC")?;
    let bytes: Vec<u8> = text.split(':').map(|byte| u8::from_str_radix(byte, 16)).collect::<Result<_, _>>()?;
    ensure!(bytes.len() == 6, "{text} is no MAC");
    Ok(EthernetAddress::from_bytes(&bytes))
}

fn serve(mac: EthernetAddress, addresses: [IpCidr; 2], port: u16, to: u16, stop: &AtomicBool) -> Result<()> {
    let mut device = RawSocket::new("eth0", Medium::Ethernet).context("a packet socket")?;
    let mut interface = Interface::new(Config::new(mac.into()), &mut device, Instant::now());
    interface.update_ip_addrs(|own| own.extend(addresses));
    interface.routes_mut().add_default_ipv4_route(Ipv4Addr::new(10, 244, 0, 1))?;
    interface.routes_mut().add_default_ipv6_route(Ipv6Addr::new(0xfd00, 0x244, 0, 0, 0, 0, 0, 1))?;
    let mut sockets = SocketSet::new(Vec::new());
    let buffer = || tcp::SocketBuffer::new(vec![0; 2048]);
    let handles: Vec<SocketHandle> = (0..SOCKETS).map(|_| sockets.add(tcp::Socket::new(buffer(), buffer()))).collect();
    let mut relayed: HashMap<SocketHandle, TcpStream> = HashMap::new();
    while !stop.load(Ordering::Relaxed) {
        interface.poll(Instant::now(), &mut device, &mut sockets);
        for handle in &handles {
            relay(sockets.get_mut(*handle), &mut relayed, *handle, port, to)?;
        }
        interface.poll(Instant::now(), &mut device, &mut sockets);
        wait(device.as_raw_fd(), Some(WAIT))?;
    }
    Ok(())
}

fn relay(
    socket: &mut tcp::Socket<'_>,
    relayed: &mut HashMap<SocketHandle, TcpStream>,
    handle: SocketHandle,
    port: u16,
    to: u16,
) -> Result<()> {
    if !socket.is_open() {
        relayed.remove(&handle);
        return socket.listen(port).context("it is closed");
    }
    let stream = match relayed.entry(handle) {
        Entry::Occupied(stream) => stream.into_mut(),
        Entry::Vacant(_) if !matches!(socket.state(), tcp::State::Established | tcp::State::CloseWait) => {
            return Ok(());
        }
        Entry::Vacant(place) => {
            let end = SocketAddr::new(IpAddr::from([127, 0, 0, 1]), to);
            let stream = TcpStream::connect(end).context("the relay's end")?;
            stream.set_nonblocking(true)?;
            stream.set_nodelay(true)?;
            place.insert(stream)
        }
    };
    if socket.can_recv() {
        let mut bytes = [0; 2048];
        let length = socket.recv_slice(&mut bytes).unwrap_or(0);
        if stream.write_all(&bytes[..length]).is_err() {
            socket.abort();
            return Ok(());
        }
    } else if !socket.may_recv() {
        let _ = stream.shutdown(std::net::Shutdown::Write);
    }
    if socket.can_send() {
        let mut bytes = [0; 512];
        match stream.read(&mut bytes) {
            Ok(0) => socket.close(),
            Ok(length) => {
                let sent = socket.send_slice(&bytes[..length]).unwrap_or(0);
                ensure!(sent == length, "{length} bytes do not fit");
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => socket.abort(),
        }
    }
    Ok(())
}
