"""CSV files as they come: finds how they are written, unless the user says it, and reads them on a time axis."""
