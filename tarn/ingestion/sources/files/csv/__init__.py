"""Text tables: CSV and its relatives, read only as far as every record can be accounted for.

A file is read three times. A sniffer settles the dialect from its beginning, a layout says which
line is the header, and a scan of all bytes cuts the file into records and checks each. Only
records that fit are parsed; the others are told with their lines.
"""
