"""Descriptors: UDP ports, links and SOCKS5 connections on a Twisted reactor."""
