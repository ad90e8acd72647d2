//! Links, addresses and sockets, through netlink.
